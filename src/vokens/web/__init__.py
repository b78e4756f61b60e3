"""Web page: listen to and look at the speech that tokens reconstruct."""
