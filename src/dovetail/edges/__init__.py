"""Who we talk to: one file and one library each. No edge imports another edge."""
