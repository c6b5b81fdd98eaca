"""What ``train.py`` is made of: data, processes, and what a run leaves behind."""
