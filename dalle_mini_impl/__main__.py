"""`python -m dalle_mini_impl` is the `dalle` command."""

from dalle_mini_impl.cli import main

if __name__ == "__main__":
    main()
