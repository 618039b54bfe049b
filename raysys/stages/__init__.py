"""One module a stage: each turns the folders of the stages before it into its own."""
