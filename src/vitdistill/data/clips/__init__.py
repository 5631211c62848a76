"""Videos: files, decoding, which frames, augmentation."""
