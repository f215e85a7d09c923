"""The surfaces that hostile files reach: each module makes cases of one of them."""
