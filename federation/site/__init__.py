"""The data owner's side: what runs beside the recordings, and what leaves. Never imports the director's side."""
