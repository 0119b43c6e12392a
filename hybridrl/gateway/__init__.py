"""An agent that is any program: it talks to an endpoint in OpenAI's or Anthropic's form, and its tokens are
trained on.

    server.py        HTTP: keys, limits, back-pressure
    openai_form.py, anthropic_form.py    requests and responses of each interface
    conversation.py  messages -> token streams, with their branches; stored answers for retries
    program.py       the program's process, its limits and its end
    player.py        one episode: a session of the server, and a program
"""
