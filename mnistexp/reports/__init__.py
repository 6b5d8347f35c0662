"""The command `report`: a study told in one page, or several side by side."""
