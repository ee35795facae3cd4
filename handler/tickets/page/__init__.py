"""The triage page, `tickets serve`: lists, tickets, corrections, a chart and exports in a browser on this machine.

    app         the routes, and what a failed request shows
    security    who may use the page: token, cookie, Host and Origin, response headers
    filters     the query string of a URL as a Selection
    views       what the pages show
    feed        the live list (server-sent events)
    passages    the text of a ticket, with the sentences of its summary marked
    chart       stacked bars per day, as SVG
    export      CSV, JSON lines and Parquet
    server      the socket, and a clean end

Requests are served by threads, because boto3 blocks.
"""
