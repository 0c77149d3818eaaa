"""The data owner's side: what runs beside the recordings, and what leaves. Never imports the director's side.

What the owner decides by (`review`, `listing`, `audit`) does without the engine; `federation.envoy` and `trainer`
import it before the modules that need it (`federation.imports`).
"""
