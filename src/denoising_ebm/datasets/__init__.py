"""Any source of images -> uint8 tensors."""
