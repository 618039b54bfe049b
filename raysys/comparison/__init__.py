"""Methods side by side: on one split, by one protocol, with what each costs."""
