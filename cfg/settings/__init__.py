"""From a config to checked values, and to what is built from them."""
