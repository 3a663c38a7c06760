"""The command line: options to settings (`parser`), and the run itself (`run`)."""
