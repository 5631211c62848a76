"""Data that others keep in containers: torchvision, Hugging Face, tar shards, parquet, csv, torch datasets."""
