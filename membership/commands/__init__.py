"""What matrixctl can have the administrator do: one module for each noun (002-43, 002-46, 002-47)."""
