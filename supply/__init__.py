"""What the image is made of: a bill of materials in the format CycloneDX."""
