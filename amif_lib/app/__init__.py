"""What make and JupyterLab call."""
