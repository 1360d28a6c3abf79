"""From a recipe to a bundle. Read pipeline.py first."""
