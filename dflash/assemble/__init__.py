"""Assembly: settings to objects, cheap ones first and the target last; the composition root, which holds no ideas."""
