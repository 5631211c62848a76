"""The type checker that the tests put behind every annotation of the package."""

from beartype import BeartypeConf, beartype

# An int is a float where one is asked for, as mypy sees it too.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
