"""The study: donors x receivers x lambda x seeds, and the statistics that say what of it is real."""
