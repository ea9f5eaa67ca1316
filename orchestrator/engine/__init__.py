"""One use case per file, each one transaction. Decisions are the domain's, SQL is the store's."""
