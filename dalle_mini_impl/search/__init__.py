"""An index of a folder's pictures: kept up to date, searched exactly, exported."""
