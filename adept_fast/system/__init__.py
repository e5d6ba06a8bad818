"""The operating system: files, text streams, pages and limits of memory."""
