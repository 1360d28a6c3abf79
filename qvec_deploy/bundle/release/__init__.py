"""What leaves the house: a bundle with its model card, bill of materials and signature."""
