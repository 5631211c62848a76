"""The demos: small complete studies."""
