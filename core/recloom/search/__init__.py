"""Architecture search: any method on any space under any costs. See docs/search.md."""
