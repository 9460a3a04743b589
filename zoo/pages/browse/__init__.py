"""The page of `zoo browse`: a table of models, a plot of them, and what is known of each; it needs no torch.

`rows` says what stands there of an entry of the catalog or of a repository, `layers` what its plan left of each layer,
`site` makes the page's files of that and `serving` serves them: `page.html`, `page.css` and the scripts, beside the
libraries of `vendor`: Tabulator 6.5.3 (the table) and Chart.js 4.6.1 (the plot), each with its licence.
"""
