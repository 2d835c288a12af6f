"""Scientific reasoning (section 3): chains of element and compound data, problem sheets, and problems without tools."""
