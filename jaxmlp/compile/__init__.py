"""What would an accelerator that is not here run? The program compiled for it, counted, read and judged."""
