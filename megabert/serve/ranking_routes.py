"""Routes that rank texts for a query, with the JSON of TEI, Cohere and Jina.

Sources: huggingface/text-embeddings-inference, router/src/http/types.rs; Cohere's API reference.
"""

from collections.abc import Sequence
from typing import Any

from .embedding_routes import CUT, RAW, cut_texts, model_of
from .hosted_models import HostedModel
from .http_application import Call, Endpoint, Reply
from .refusals import invalid
from .request_fields import RequestField
from .task_routes import MODEL, check_number


def ranking_endpoints() -> list[Endpoint]:
    """Return the routes, also below /models/NAME."""
    tei = [
        Endpoint("POST", path, _rerank, "Rank texts for a query.", "rank", TEI_RERANK, answer="[{index, score, text}]")
        for path in ("/rerank", "/models/{model}/rerank")
    ]
    return tei + [
        Endpoint("POST", path, _cohere, "Rank documents, with Cohere's and Jina's JSON.", "rank", COHERE,
                 answer="results: [{index, relevance_score, document}]")
        for path in ("/v1/rerank", "/v2/rerank", "/models/{model}/v1/rerank")
    ]  # fmt: skip


def _scores_pairs(model: HostedModel) -> bool:
    return model.ranking is not None


def _order(scores: Sequence[float]) -> list[int]:
    """Return the places of the texts, the best score first, equal ones in their order."""
    return sorted(range(len(scores)), key=lambda index: (-scores[index], index))


TEI_RERANK = (
    RequestField("query", "string", "The query."),
    RequestField("texts", "list of strings", "The texts."),
    MODEL,
    RAW,
    RequestField("return_text", "boolean", "Whether the answer repeats the texts.", False),
    *CUT,
)


async def _rerank(call: Call) -> Reply:
    fields, model = call.fields, model_of(call, _scores_pairs)
    check_number(fields["texts"], call, "texts")
    texts = cut_texts(fields["texts"], model, call)
    is_raw = fields["raw_scores"]
    scores = await call.compute(lambda work: model.score_pairs(fields["query"], texts, work, is_raw=is_raw))
    order, text = _order(scores), fields["texts"]
    return Reply(
        [
            {"index": index, "score": scores[index], **({"text": text[index]} if fields["return_text"] else {})}
            for index in order
        ]
    )


COHERE = (
    MODEL,
    RequestField("query", "string", "The query."),
    RequestField("documents", "list", "The documents: strings, or objects with text."),
    RequestField("top_n", "integer", "How many of the best are returned; default: all.", None),
    RequestField("return_documents", "boolean", "Whether the answer repeats the documents.", False),
)


async def _cohere(call: Call) -> Reply:
    fields, model = call.fields, model_of(call, _scores_pairs)
    check_number(fields["documents"], call, "documents")
    texts: list[Any] = [item.get("text") if isinstance(item, dict) else item for item in fields["documents"]]
    if not all(isinstance(text, str) for text in texts):
        raise invalid("documents has items that are neither strings nor objects with text.", "documents")
    if fields["top_n"] is not None and fields["top_n"] < 1:
        raise invalid("top_n is less than 1.", "top_n")
    scores = await call.compute(lambda work: model.score_pairs(fields["query"], texts, work))
    order = _order(scores)[: fields["top_n"]]
    results = [
        {
            "index": index,
            "relevance_score": scores[index],
            **({"document": {"text": texts[index]}} if fields["return_documents"] else {}),
        }
        for index in order
    ]
    assert call.work is not None
    return Reply({"model": model.name, "results": results, "usage": {"total_tokens": call.work.tokens}})
