"""Vision-language backbones."""
