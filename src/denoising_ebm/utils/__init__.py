"""Files, devices and optional packages: what every room may use."""
