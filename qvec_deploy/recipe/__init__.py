"""What the user wants: receiver, vector, lambda and bit width tied to one target."""

from qvec_deploy.recipe.blocks import FLOAT_BITS, Evaluate, Images, Select, named_images
from qvec_deploy.recipe.load import load_recipe, load_recipes, recipe_schema
from qvec_deploy.recipe.measuring_blocks import Gates, Measure
from qvec_deploy.recipe.recipe import Recipe

__all__ = [
    "FLOAT_BITS",
    "Evaluate",
    "Gates",
    "Images",
    "Measure",
    "Recipe",
    "Select",
    "load_recipe",
    "load_recipes",
    "named_images",
    "recipe_schema",
]
