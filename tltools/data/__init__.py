"""Images and labels: everything between disk and model, without torch."""
