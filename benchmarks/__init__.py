"""Side-by-side measurements of luthier and what people use today: `make bench`."""
