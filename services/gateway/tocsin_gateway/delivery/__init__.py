"""Who gets which event, in which bytes, and how much may wait for a slow client."""
