"""AVA's annotations: who does what, where and when."""
