"""Images whose every pixel has a class: folder pairs as ADE20K's, and the bundled scenes."""
