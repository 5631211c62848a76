"""Images: files, augmentation."""
