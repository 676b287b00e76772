"""Steps that change the task vectors before a method sees them; the file name is the key under ``prepare:``."""
