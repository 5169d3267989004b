"""Both encoders against the rules of CSV, and the native one under AddressSanitizer."""
