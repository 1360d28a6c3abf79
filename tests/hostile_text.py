"""Text that attacks whoever shows it, one kind an entry."""
