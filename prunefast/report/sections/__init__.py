"""From arrays to what the template shows: a module a section, whose functions give plain dicts and texts."""
