"""Examples as token ids: chat formats, encoding, packing."""
