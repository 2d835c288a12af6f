"""Questions put to the recipe: arms and seeds as workspaces of the same stages, and what their records say."""
