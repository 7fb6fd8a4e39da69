"""`onedva serve`: the codec behind HTTP and WebSocket, for services. Needs `onedva[serve]`; never torch. docs/serve.md
is for people who run or call it.

    settings.py   what the operator decides        refusal.py    how a request is refused, in one shape
    service.py    the codec, warm-up, readiness    admission.py  who may work now, and who comes back later
    cost.py       seconds that work will take      batching.py   clips of several clients in one run
    flow.py       threads and the event loop       metrics.py    what Prometheus reads
    guard.py      hosts, origins, tokens           body.py       uploads, slow ones too
    jobs.py       whole videos, as generators      files.py      /v1/encode, /v1/decode
    live.py       what live sessions share         live_encode.py, live_decode.py
    app.py        the routes                       server.py     uvicorn, and how it stops
"""
