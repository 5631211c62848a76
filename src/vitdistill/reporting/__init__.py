"""Looking at runs: reading run directories, figures, pictures of masks, and the HTML page."""
