"""What stands below everything: files, errors, processes, devices."""
