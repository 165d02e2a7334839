"""What `debm score` and `debm evaluate` hand out: tables, pictures of where images are odd, pages."""
