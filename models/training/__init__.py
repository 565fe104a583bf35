"""What only training needs."""
