"""This room makes what people look at: rows, tables, plots, pages."""
