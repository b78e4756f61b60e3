"""A page in the browser: hear and see what tokens keep of speech."""
